"""The stage 1 tiny step in PyTorch: two frozen teachers, a masked student, three losses, AdamW."""
import sys

print("this script is filled in later", file=sys.stderr)
sys.exit(1)
