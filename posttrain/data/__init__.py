"""From files to rows to draws: formats, containers, sealed datasets, mixtures and their order."""
