# Written by tools/write_stubs.py from the room's api notebook: do not edit.
from .collect import collect as collect
from .collect import compare as compare
from .collect import gather as gather
from .collect import summary as summary
from .doctor import checkup as checkup
from .execute import execute as execute
from .predict import predict_table as predict_table
from .report import notebook_to_html as notebook_to_html
from .run import Run as Run
from .run import read_result as read_result
from .experiment import read_experiment as read_experiment
from .notebooks import list_notebooks as list_notebooks
from .sweep import sweep as sweep
