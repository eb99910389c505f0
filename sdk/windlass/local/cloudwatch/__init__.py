"""CloudWatch: metrics on SQLite, alarms that are evaluated, dashboards, logs."""
