"""From text to tokens: the chat template (`chat.py`), and rows, masks and positions (`batching.py`).

May import feedback and below.
"""
