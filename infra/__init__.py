"""The CDK app: what an account needs before Windlass can work in it. Deployed by ``windlass infra deploy``."""
