"""All that touches NAVSIM's tree; only this room imports navsim."""
