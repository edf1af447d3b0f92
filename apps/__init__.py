"""BabbleBox: asynchronous voice chat, in three thin apps on pulsartasks."""
