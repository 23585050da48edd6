"""Value estimators: how good the state before each segment is. One a file."""
