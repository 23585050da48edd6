"""The policy-gradient loop and the steps that it is made of."""
