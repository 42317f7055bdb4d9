"""The reference zoo: small real models and tasks on which a merge search means something."""
