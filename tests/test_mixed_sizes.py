"""The command makes clips of several sizes and lengths side by side."""






