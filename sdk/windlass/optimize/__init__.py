"""What makes a trained model smaller, faster or fit elsewhere. Weights in, weights out; knows no AWS."""
