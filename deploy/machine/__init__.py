"""The machine under a measurement: its files, clocks, heat, software, and what slows it down."""
