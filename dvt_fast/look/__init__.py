"""A local page to look at images and their features: raw against clean, similarities, norms, clusters, artifacts.

`model` makes what the page shows of one image, `session` does so one image at a time as they are asked for, `server`
answers the browser, and `assets` is the page itself: plain HTML, CSS and JavaScript that ask nobody but this server.
"""
