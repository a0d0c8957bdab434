"""`lapa explore`: a page on this machine on which codes are pressed, and the decoder draws what they do.

opened.py  runs, videos and policies -> what the page shows of them
play.py    a frame and codes -> pictures; a frame and an instruction -> the policy's codes
told.py    what a code and a run tell, in words
panels.py  all of this as HTML
page.py    the page: keys, clicks, the server

Everything but page.py works without a browser.
"""
