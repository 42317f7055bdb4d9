"""Merges of LoRA adapters that stay in factors: no dense delta is ever made."""
