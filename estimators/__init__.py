"""Value estimators and advantage schemes."""
