"""What the commands do: parse, call one function, print."""
