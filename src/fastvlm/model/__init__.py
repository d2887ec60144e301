"""The arithmetic, once: every runtime and every export is made from these modules and proven equal to them."""
