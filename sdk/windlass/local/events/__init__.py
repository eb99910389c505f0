"""What alarms and events reach: EventBridge, schedules, Lambda functions, SNS, scaling."""
