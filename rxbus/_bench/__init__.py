"""`rxbus bench`: how fast rxbus is beside the peers that are installed.

peers      rxbus and its peers, each behind one small adapter
rounds     what is measured of them, in rounds that they take turns in
plot       the figures, drawn
command    the same at the terminal
"""
