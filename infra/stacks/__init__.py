"""One file for each CloudFormation stack."""
