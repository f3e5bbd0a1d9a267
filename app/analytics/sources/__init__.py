"""Where events come from: the histories in the databases of the modules, their archive, and the streams of the bus."""
