"""Does it clean features, and by how much: measurements of ViT features before and after denoising, on labelled images.

`frames` says what the ViT is shown, `variants` what is made of its features, `features` computes and keeps them, `data`
reads labels; each task (`mic`, `segment`, `knn`, `depth`, `discover`, `detect`, `speed`) turns one variant's features
into an `outcome.Outcome`; `store` keeps outcomes as JSON, and `report` makes one page of them.
"""
