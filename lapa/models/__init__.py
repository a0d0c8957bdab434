"""What stage 1 fits: LAQ, and the inverse dynamics model of the VPT baseline."""
