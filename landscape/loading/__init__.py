"""Files and names become live objects; the only room that reads untrusted files."""
