"""How our small ViT learns to see from drawings alone: its data, its task, its optimizer."""
