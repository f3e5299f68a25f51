"""Back in the source framework: masks put into Keras models, and training that keeps them."""
