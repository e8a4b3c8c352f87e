"""The PXP paper's experiments at the size of CIFAR-10: networks, measurements, and the page that shows them."""
