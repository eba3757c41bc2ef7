"""What a person looks at: pictures of a result (`views`) and one page that holds them (`report`).

May use: `core`, `images`, `evaluation`, `registration`.
"""
