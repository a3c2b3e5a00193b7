"""Pages for a browser on this machine: who may ask for them, where they are served, how pictures travel."""
