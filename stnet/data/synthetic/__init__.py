"""Made ultrasound: phantoms, motion of stills, and what screens and examiners add to an image."""
