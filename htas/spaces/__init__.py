"""Hardware-aware spaces: the survey, the fit and the choices of section 3.2."""
