"""IAM that bites: may this caller do that, as AWS would decide it?

conditions   operators and policy variables              pure
policy       one document; the decision over all of them  pure
actions      an API call -> the actions and ARNs it needs
requests     an HTTP request -> the API call in it
principals   an access key -> who that is, and their policies
authorizer   puts these together: what the server, and what acts on a role's behalf, asks
least        calls seen -> the least policy that allows them
"""
