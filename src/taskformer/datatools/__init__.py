"""What makes and checks data: preparation, miniatures, the rooms' renderer, verification, statistics, previews."""
