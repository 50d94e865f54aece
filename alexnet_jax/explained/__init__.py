"""How a picture goes through a net, for people: what `explain` computes and the page it makes."""
