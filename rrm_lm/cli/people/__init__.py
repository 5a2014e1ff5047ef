"""Commands about feedback of people: `ask` serves the page that they answer on, `feedback` manages their store."""
