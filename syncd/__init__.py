"""syncd: a sidecar that has every finished checkpoint safe in an object store moments later."""
