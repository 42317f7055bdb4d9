"""Search algorithms behind one ask/tell contract, one file each."""
