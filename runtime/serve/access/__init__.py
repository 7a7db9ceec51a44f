"""How other devices reach a server and sign in: its addresses, sign-in links and their QR codes."""
