"""The success classifier: is the task done, and how far can that be trusted?"""
