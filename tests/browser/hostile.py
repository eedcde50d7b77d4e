"""Names and payloads that would do harm, were they taken for markup."""

TOPIC = "<img/src=x/onerror=alert(1)//"  # no topic may hold ">" or white space, and markup needs neither
NAME = "<script>alert(2)</script> \"'& \u202e"
PAYLOAD = "]]></title></style></script><script>alert(3)</script><img src=x onerror=alert(4)> \"'& \u202e"
