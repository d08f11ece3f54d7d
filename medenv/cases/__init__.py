"""Concrete patients: generators and loaders."""
