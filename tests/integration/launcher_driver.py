"""Runs the real supervisor over the stand-in graph. Usage: launcher_driver.py <journal file> [stand-in mode]"""

import asyncio
import sys
from pathlib import Path

from configs.environment import read_environment
from launcher.console import Console
from launcher.supervisor import Graph, Supervisor

STAND_IN = Path(__file__).with_name("launcher_stand_in.py")
MIGRATE = """
import asyncio, os, psycopg
async def main():
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS migrated (at timestamptz DEFAULT now())")
        await connection.execute("INSERT INTO migrated DEFAULT VALUES")
        await connection.execute("GRANT SELECT ON migrated TO daarion_service")
asyncio.run(main())
"""
graph = Graph([sys.executable, str(STAND_IN), *sys.argv[1:]], memory_needed=0)
sys.exit(asyncio.run(Supervisor(read_environment(), Console(), [sys.executable, "-c", MIGRATE], graph).run()))
