"""Where evaluations happen: in this process or on Ray actors."""
