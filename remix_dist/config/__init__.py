"""What a run is (run), what it must not be (check), and how words become one (parse)."""
