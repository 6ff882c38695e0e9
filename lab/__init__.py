"""The lab: a whole emulated fleet on one machine. The only package that imports both programs."""
