"""Run exported graphs, check them spike by spike, count and price their operations."""
