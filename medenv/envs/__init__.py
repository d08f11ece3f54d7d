"""The environments and the engine behind them."""
