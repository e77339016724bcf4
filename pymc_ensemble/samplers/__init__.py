"""The dynamics, on arrays alone: ask-tell samplers that never call the forward map."""
