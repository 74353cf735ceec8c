"""What makes a student of a larger model: teachers, feature maps, weight selection."""
