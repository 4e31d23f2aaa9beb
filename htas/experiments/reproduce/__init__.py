"""The paper's tables and figures made again on this machine, each next to the printed one."""
