"""Endpoints: fleets of model servers, the traffic to them, and updates that lose none of it."""
