"""What stands in the documents of `make_rendered.py`: people, companies, goods, forms, letters, notices. Names and goods of `val` and `test` do not overlap."""

import datetime
import random

_FIRST = "Alice Brian Carmen David Elena Frank Grace Henry Irene James Karen Liam Maria Nathan Olivia Peter Quinn Rachel Samuel Teresa Umar Victoria Walter Xenia Yusuf Zoe Amelia Bruno Chloe Derek Esther Fatima George Hannah Isaac Julia".split()
_LAST = "Anderson Becker Carter Delgado Edwards Fischer Gomez Harrison Ito Jensen Kowalski Lambert Mitchell Novak Okafor Patterson Quigley Reynolds Schmidt Thompson Ueda Vasquez Whitfield Young Zimmerman Abbott Bennett Crawford Donovan Ellison Fletcher Griffin Holloway Irving Jacobs Kendrick".split()
_CITY = "Springfield Riverside Madison Georgetown Ashland Fairview Clinton Greenville Bristol Dover Oxford Arlington Burlington Milton Newport Hudson Salem Kingston Oakdale Lexington Winchester Dayton Franklin Manchester".split()
_STREET = "Oak Maple Main Elm Washington Lake Hill Park Pine Cedar Church Highland River Spring Market Bridge School Mill Center Prospect Union Garden Broad Chestnut".split()
_COMPANY = "Northwind Bluebird Summit Evergreen Pioneer Harbor Silverline Cobalt Redwood Lakeside Brightway Atlas Meridian Cascade Horizon Stonegate Ironwood Sunrise Keystone Fairmont Granite Westfield Clearwater Beacon".split()
_TRADE = [
    "Solutions",
    "Logistics",
    "Design",
    "Consulting",
    "Electronics",
    "Engineering",
    "Media",
    "Supplies",
    "Software",
    "Services",
    "Industries",
    "Partners",
]
_SUFFIX = ["Inc.", "LLC", "Ltd.", "Co.", "Group", "GmbH"]
_STORE = [
    "Market",
    "Grocery",
    "Hardware",
    "Pharmacy",
    "Books",
    "Bakery",
    "Electronics",
    "Florist",
    "Pet Supply",
    "Corner Shop",
    "Outdoor",
    "Stationery",
]
_CAFE = ["Cafe {}", "{} Coffee", "{} Diner", "The {} Grill", "{} Bistro", "Pizzeria {}", "{} Noodle Bar", "{} Tea House"]
_ITEMS = [
    ("Whole Milk 1L", 1.89), ("Brown Bread", 3.49), ("Free Range Eggs", 4.25), ("Cheddar Cheese", 5.99), ("Bananas", 1.2), ("Orange Juice", 3.75), ("Ground Coffee", 8.99), ("Green Tea", 4.5), ("Pasta 500g", 1.65), ("Olive Oil", 9.49),
    ("Tomato Soup", 2.15), ("Paper Towels", 6.79), ("Dish Soap", 3.29), ("AA Batteries", 7.95), ("Light Bulb", 4.99), ("Notebook A5", 2.99), ("Ballpoint Pen", 1.5), ("USB Cable", 12.99), ("Phone Case", 19.95), ("Garden Gloves", 8.25),
    ("Potting Soil", 11.5), ("Wood Screws", 5.45), ("Paint Brush", 6.35), ("Hammer", 17.8), ("Toothpaste", 3.85), ("Shampoo", 5.65), ("Vitamin C", 9.99), ("Hand Cream", 4.75), ("Dog Food 2kg", 13.49), ("Cat Litter", 10.25),
    ("Birthday Card", 3.95), ("Gift Wrap", 4.15), ("Chocolate Bar", 2.45), ("Potato Chips", 2.85), ("Sparkling Water", 1.35), ("Frozen Peas", 2.55), ("Butter", 3.15), ("Strawberry Jam", 3.65), ("Rice 1kg", 2.75), ("Honey", 6.95),
]  # fmt: skip
_DISHES = [
    ("Cappuccino", 4.5), ("Espresso", 3.0), ("Latte", 4.75), ("Iced Tea", 3.5), ("Lemonade", 3.8), ("Caesar Salad", 11.5), ("Tomato Soup", 7.25), ("Cheeseburger", 13.9), ("Club Sandwich", 12.4), ("Margherita Pizza", 14.5), ("Fish and Chips", 16.2),
    ("Grilled Chicken", 17.8), ("Spaghetti", 13.2), ("Apple Pie", 6.5), ("Cheesecake", 7.2), ("Brownie", 5.4), ("Croissant", 3.4), ("Omelette", 9.8), ("French Fries", 4.9), ("House Wine", 7.5), ("Pancakes", 8.6), ("Bagel", 3.9), ("Vegetable Curry", 14.1), ("Steak", 24.5),
]  # fmt: skip
_SERVICES = [
    ("Website design", 850.0), ("Logo design", 320.0), ("Consulting hours", 95.0), ("Hosting (1 year)", 120.0), ("Office chair", 149.0), ("Standing desk", 389.5), ("Laser printer", 229.99), ("Toner cartridge", 74.9), ("Copy paper, box", 38.25),
    ("Software license", 199.0), ("Installation", 150.0), ("Annual maintenance", 480.0), ("Translation", 65.0), ("Photography", 540.0), ("Window cleaning", 85.0), ("Garden work", 45.0), ("Network switch", 112.4), ("Monitor 27 inch", 279.0),
    ("Wireless keyboard", 49.95), ("Training session", 375.0), ("Editing", 55.0), ("Plumbing repair", 180.0), ("Electrical inspection", 210.0), ("Delivery", 25.0), ("Steel brackets", 7.8), ("Oak boards", 32.6),
]  # fmt: skip
_ROLES = [
    "Account Manager",
    "Head of Sales",
    "Project Manager",
    "Office Manager",
    "Director",
    "Customer Service",
    "Chief Engineer",
    "HR Manager",
    "Marketing Lead",
    "Accountant",
    "Secretary",
    "Principal",
]
_DEPARTMENTS = [
    "Engineering",
    "Finance",
    "Marketing",
    "Human Resources",
    "Research",
    "Sales",
    "Operations",
    "Biology",
    "History",
    "Security",
]
_COUNTRIES = [
    "Canada",
    "Ireland",
    "Portugal",
    "Norway",
    "Brazil",
    "Japan",
    "Kenya",
    "Poland",
    "Australia",
    "Spain",
    "India",
    "United States",
]
_LETTERS: list[tuple[str, list[str], tuple[str, str]]] = [
    ("Annual meeting", ["We would like to invite you to our annual meeting on {day}. It will start at {time} in the main hall in {city}.", "Lunch will be served after the talks. Please let us know if you can attend."], ("At what time does the meeting start?", "{time}")),
    ("Late payment", ["Our records show that your payment of {money} has not arrived yet. It was due on {day}.", "If you have already paid, please ignore this letter."], ("How much has not been paid?", "{money}")),
    ("Your application", ["Thank you for your application for the position of {role}. We were impressed by your experience.", "We would like to meet you on {day} at {time}. Please bring your certificates."], ("Which position was applied for?", "{role}")),
    ("Change of address", ["Please note that we are moving. From {day} our new address will be {street}, {city}.", "Our phone number stays the same. We look forward to welcoming you in our new office."], ("From when is the new address valid?", "{day}")),
    ("Delivery of your order", ["Your order {number} has left our warehouse today. You can expect the delivery on {day}.", "The total of {money} will be charged to your card."], ("What is the order number?", "{number}")),
    ("Rent increase", ["We are writing to inform you that the rent for your apartment will be {money} per month from {day}.", "Please contact the office if you have any questions."], ("How much will the rent be per month?", "{money}")),
    ("Project update", ["The first phase of the project in {city} is complete. The second phase starts on {day}.", "So far we have spent {money}, which is less than planned. {name} will send the full report next week."], ("Who will send the full report?", "{name}")),
    ("Complaint about a product", ["I bought a vacuum cleaner in your store on {day}. It stopped working after one week.", "I would like a refund of {money}. A copy of the receipt is enclosed."], ("How much refund is requested?", "{money}")),
    ("School trip", ["The class will visit the science museum in {city} on {day}. The bus leaves at {time}.", "The trip costs {money} per child. Please sign the form and return it to {name}."], ("When does the bus leave?", "{time}")),
    ("Contract renewal", ["Your contract {number} ends on {day}. We are happy to offer you a new one on the same terms.", "The monthly fee remains {money}. Please sign both copies and send one back."], ("When does the contract end?", "{day}")),
    ("Thank you", ["Thank you very much for your donation of {money}. It helps us to run the library in {city}.", "You are warmly invited to our open day on {day}."], ("How much was donated?", "{money}")),
    ("Water supply", ["The water will be turned off on {day} from {time} for about two hours. We are sorry for the inconvenience.", "For emergencies call {phone}."], ("Which number should be called in emergencies?", "{phone}")),
]  # fmt: skip


class Pool:
    """Draws content for one document; money and dates are in one manner."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng, self.half = rng, ("val", "test").index(split)
        self.currency = rng.choice([("$", ""), ("$", ""), ("$", ""), ("€", ""), ("£", ""), ("", " EUR"), ("", " USD")])
        self.date_format = rng.choice(["%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y"])
        self.word_format = rng.choice(["%B {d}, %Y", "{d} %B %Y", "%b {d}, %Y"])
        self.today = datetime.date(2023, 1, 1) + datetime.timedelta(days=rng.randint(0, 900))

    def mine(self, values: list) -> list:
        """The half of a list that belongs to the split."""
        return values[self.half :: 2]

    def pick(self, values: list):
        return self.rng.choice(self.mine(values))

    def first(self) -> str:
        return self.pick(_FIRST)

    def person(self) -> str:
        return f"{self.first()} {self.pick(_LAST)}"

    def city(self) -> str:
        return self.pick(_CITY)

    def street(self) -> str:
        return f"{self.rng.randint(2, 980)} {self.pick(_STREET)} {self.rng.choice(['Street', 'Avenue', 'Road', 'Lane', 'St.', 'Drive'])}"

    def town(self) -> str:
        zip_code = f"{self.rng.randint(10000, 99999)}"
        return (
            f"{self.city()}, {self.rng.choice(['CA', 'NY', 'TX', 'OH', 'MA', 'WA'])} {zip_code}"
            if self.rng.random() < 0.6
            else f"{zip_code} {self.city()}"
        )

    def phone(self) -> str:
        a, b, c = self.rng.randint(200, 989), self.rng.randint(200, 989), self.rng.randint(1000, 9999)
        return self.rng.choice([f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"+1 {a} {b} {c}", f"+44 20 {c} {self.rng.randint(1000, 9999)}"])

    def company(self) -> str:
        return f"{self.pick(_COMPANY)} {self.pick(_TRADE)} {self.rng.choice(_SUFFIX)}"

    def store(self) -> str:
        return f"{self.rng.choice([self.pick(_COMPANY), self.city(), self.pick(_LAST) + chr(39) + 's'])} {self.pick(_STORE)}"

    def cafe(self) -> str:
        return self.pick(_CAFE).format(self.rng.choice([self.first(), self.pick(_COMPANY)]))

    def organisation(self) -> str:
        return self.rng.choice(
            [self.company(), f"{self.city()} University", f"{self.city()} Public Library", f"{self.pick(_COMPANY)} Sports Club"]
        )

    def site(self, name: str) -> str:
        return "www." + "".join(ch for ch in name.lower() if ch.isalnum()) + self.rng.choice([".com", ".org", ".net"])

    def email(self, name: str) -> str:
        words = "".join(ch if ch.isalnum() else " " for ch in name.lower()).split()
        return f"{words[0]}.{words[1]}@example.com" if self.rng.random() < 0.5 else f"info@{words[0]}.com"

    def iban(self) -> str:
        digits = "".join(str(self.rng.randint(0, 9)) for _ in range(18))
        return "DE" + digits[:2] + "".join(f" {digits[i : i + 4]}" for i in range(2, 18, 4))

    def number(self, prefix: str) -> str:
        rng = self.rng
        digits = str(rng.randint(1000, 999999))
        return rng.choice([f"{prefix}-{digits}", f"{prefix}{digits}", f"{prefix}-{self.today.year}-{digits[:4]}"]) if prefix else digits

    def wrong(self, value: str) -> str:
        """Another value that looks like this one."""
        places = [i for i, ch in enumerate(value) if ch.isdigit()]
        if not places:
            return self.person() if value[:1].isupper() else value[::-1]
        out = list(value)
        for i in self.rng.sample(places, min(2, len(places))):
            out[i] = str((int(out[i]) + self.rng.randint(1, 8)) % 10)
        return "".join(out)

    def role(self) -> str:
        return self.pick(_ROLES)

    def department(self) -> str:
        return self.pick(_DEPARTMENTS)

    def country(self) -> str:
        return self.pick(_COUNTRIES)

    def date(self, later: bool = False, words: bool = False) -> str:
        day = self.today + datetime.timedelta(days=self.rng.randint(10, 60) if later else -self.rng.randint(0, 9))
        return day.strftime(self.word_format).replace("{d}", str(day.day)) if words else day.strftime(self.date_format)

    def time(self) -> str:
        hour, minute = self.rng.randint(7, 20), self.rng.choice([0, 5, 12, 15, 28, 30, 41, 45, 53])
        return (
            f"{hour}:{minute:02}"
            if self.date_format.startswith("%d")
            else f"{(hour - 1) % 12 + 1}:{minute:02} {'AM' if hour < 12 else 'PM'}"
        )

    def money(self, value: float) -> str:
        before, after = self.currency
        return f"{before}{value:,.2f}{after}"

    def sum(self, items: list[tuple[str, int, float]]) -> float:
        return round(sum(q * c for _, q, c in items), 2)

    def items(self, count: int) -> list[tuple[str, int, float]]:
        return [(n, self.rng.choice([1, 1, 1, 2, 3]), c) for n, c in self.rng.sample(self.mine(_ITEMS), count)]

    def dishes(self, count: int) -> list[tuple[str, int, float]]:
        return [(n, self.rng.choice([1, 1, 2, 3]), c) for n, c in self.rng.sample(self.mine(_DISHES), count)]

    def other_dish(self, items: list[tuple[str, int, float]]) -> str:
        return self.rng.choice([n for n, _ in self.mine(_DISHES) if n not in [known for known, _, _ in items]])

    def services(self, count: int) -> list[tuple[str, int, float]]:
        return [(n, self.rng.choice([1, 1, 2, 4, 10]), c) for n, c in self.rng.sample(self.mine(_SERVICES), count)]

    def letter(self) -> tuple[str, list[str], tuple[str, str, str]]:
        """Subject, paragraphs, and a question about a fact in them."""
        subject, paragraphs, (question, answer) = self.pick(_LETTERS)
        facts = {"day": self.date(words=True, later=True), "time": self.time(), "city": self.city(), "money": self.money(self.rng.choice([45, 120, 250.5, 899, 1240, 1875.25, 3200])), "role": self.role(), "street": self.street(), "number": self.number("C"), "name": self.person(), "phone": self.phone()}  # fmt: skip
        return subject, [text.format(**facts) for text in paragraphs], (question, answer.format(**facts), "field")

    def form(self, count: int) -> tuple[str, list[tuple[str, str]]]:
        title = self.pick(
            [
                "Patient Registration",
                "Job Application",
                "Membership Form",
                "Event Registration",
                "Vehicle Inspection",
                "Insurance Claim",
                "Library Card Application",
                "Repair Request",
                "Hotel Registration",
                "Contact Form",
            ]
        )
        name = self.person()
        known = [("Full Name", name), ("Date of Birth", self.date()), ("Address", self.street()), ("City", self.city()), ("Phone", self.phone()), ("Email", self.email(name)), ("Occupation", self.role()), ("Emergency Contact", self.person()), ("Account Number", self.number("")), ("Country", self.country()), ("Start Date", self.date(later=True)), ("Policy No.", self.number("P"))]  # fmt: skip
        return title, [known[0], *self.rng.sample(known[1:], count - 1)]

    def ask_form(self, title: str, fields: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
        asks = {"Full Name": "What is the full name?", "Date of Birth": "What is the date of birth?", "Address": "What is the address?", "City": "What city is given?", "Phone": "What is the phone number?", "Email": "What is the email address?", "Occupation": "What is the occupation?", "Emergency Contact": "Who is the emergency contact?", "Account Number": "What is the account number?", "Country": "Which country is given?", "Start Date": "What is the start date?", "Policy No.": "What is the policy number?"}  # fmt: skip
        return [
            *[(asks[a], b, "field") for a, b in self.rng.sample(fields, min(4, len(fields)))],
            ("What is the title of the form?", title, "field"),
        ]

    def table(self, count: int) -> tuple[str, list[str], list[list[str]], set[int]]:
        """Title, header, rows, and the columns of numbers."""
        rng = self.rng
        way = rng.randrange(4)
        if way == 0:
            rows = [[n, str(rng.randint(0, 400)), self.money(c)] for n, c in rng.sample(self.mine(_ITEMS), count)]
            return self.pick(["Price List", "Stock Report", "Inventory", "Product Overview"]), ["Product", "Stock", "Price"], rows, {1, 2}
        if way == 1:
            names = rng.sample(self.mine(_LAST), count)
            rows = [[f"{self.first()} {n}", self.department(), str(rng.randint(101, 499))] for n in names]
            return (
                self.pick(["Staff Directory", "Office Phone List", "Team Members", "Room Plan"]),
                ["Name", "Department", "Extension"],
                rows,
                {2},
            )
        if way == 2:
            rows = [
                [c, f"{rng.randint(10, 990):,}", f"{rng.randint(10, 990):,}", f"{rng.uniform(-20, 40):.1f}%"]
                for c in rng.sample(self.mine(_CITY), count)
            ]
            return (
                self.pick(["Sales by City", "Visitors per Branch", "Units Sold", "Regional Results"]),
                ["City", "2023", "2024", "Change"],
                rows,
                {1, 2, 3},
            )
        rows = [[f"{rng.randint(5, 22):02}:{rng.choice(['05', '10', '25', '40', '55'])}", c, f"{rng.choice('ABC')}{rng.randint(1, 30)}", rng.choice(["On time", "Delayed", "Boarding"])] for c in rng.sample(self.mine(_CITY), count)]  # fmt: skip
        return (
            self.pick(["Departures", "Train Timetable", "Bus Schedule", "Evening Departures"]),
            ["Time", "Destination", "Platform", "Status"],
            sorted(rows),
            set(),
        )

    def ask_table(self, title: str, heads: list[str], rows: list[list[str]]) -> list[tuple[str, str, str]]:
        rng = self.rng
        key = 1 if heads[0] == "Time" else 0
        out = [
            ("What is the title of the table?", title, "field"),
            ("How many rows does the table have, without the header?", str(len(rows)), "count"),
        ]
        for row in rng.sample(rows, 3):
            j = rng.choice([j for j in range(len(heads)) if j != key])
            out.append((f"What is the {heads[j].lower()} for {row[key]}?", row[j], "cell"))
        out.append((f"What is the first {heads[key].lower()} in the table?", rows[0][key], "cell"))
        return out

    def hours(self) -> list[tuple[str, str]]:
        rng = self.rng
        day = (
            f"{rng.randint(7, 10)}:{rng.choice(['00', '30'])} - {rng.randint(17, 21)}:00"
            if rng.random() < 0.5
            else f"{rng.randint(7, 10)} am - {rng.randint(5, 9)} pm"
        )
        short = f"{rng.randint(9, 11)}:00 - {rng.randint(13, 16)}:00" if ":" in day else f"{rng.randint(9, 11)} am - {rng.randint(1, 4)} pm"
        return rng.choice(
            [
                [("Monday - Friday", day), ("Saturday", short), ("Sunday", "Closed")],
                [("Mon - Thu", day), ("Friday", short), ("Sat - Sun", "Closed")],
                [("Tuesday - Saturday", day), ("Sunday", short)],
            ]
        )

    def notice(self) -> tuple[str, list[str], list[tuple[str, str, str]]]:
        """Heading, lines and questions of a sign."""
        rng = self.rng
        price, old, off = (
            self.money(rng.choice([4.99, 9.95, 14.5, 24.0, 39.9])),
            self.money(rng.choice([49.99, 59.0, 75.5])),
            f"{rng.choice([10, 20, 25, 30, 50])}%",
        )
        thing, _ = self.pick(_ITEMS)
        day, phone, room, person = self.date(words=True), self.phone(), str(rng.randint(100, 480)), self.person()
        return rng.choice([
            ("SALE", [thing, f"now only {price}", f"was {old}", f"until {day}"], [("What is on sale?", thing, "field"), ("What is the new price?", price, "field"), ("What was the old price?", old, "field"), ("Until when is the sale?", day, "field"), ("What does the sign say at the top?", "SALE", "field"), (f"Is the price {old} now?", "No", "yes_no")]),
            ("NO PARKING", ["Private property", "Vehicles will be towed", f"Call {phone}"], [("What number should be called?", phone, "field"), ("What does the heading say?", "NO PARKING", "field"), ("What does the second line say?", "Private property", "line"), ("What does the last line say?", f"Call {phone}", "line"), ("Is parking allowed here?", "No", "yes_no")]),
            (f"Room {room}", [person, self.role(), f"Office hours: {self.hours()[0][1]}"], [("Whose office is it?", person, "field"), ("What is the room number?", room, "field"), ("What does the heading say?", f"Room {room}", "field"), (f"Is it the office of {self.person()}?", "No", "yes_no")]),
            (f"{off} OFF", [f"all {self.pick(['shoes', 'books', 'garden tools', 'winter coats', 'kitchenware', 'toys'])}", f"{self.store()}", f"ends {day}"], [("How much is the discount?", off, "field"), ("When does the offer end?", day, "field"), ("What does the heading say?", f"{off} OFF", "field"), ("Is there a discount?", "Yes", "yes_no")]),
            ("CAUTION", ["Wet floor", "Please use the other entrance", f"Questions: {phone}"], [("What is the warning about?", "Wet floor", "field"), ("What is the phone number?", phone, "field"), ("What does the heading say?", "CAUTION", "field"), ("Is the floor dry?", "No", "yes_no")]),
        ])  # fmt: skip

    def settings(self, count: int) -> tuple[str, list[tuple[str, str]]]:
        rng = self.rng
        rows = [("Language", rng.choice(["English", "Spanish", "French"])), ("Version", f"{rng.randint(1, 14)}.{rng.randint(0, 9)}.{rng.randint(0, 9)}"), ("Storage", f"{rng.randint(8, 120)} GB of 128 GB"), ("Battery", f"{rng.randint(5, 100)}%"), ("Device name", f"{self.first()}'s Phone"), ("Account", self.email(self.person())), ("Time zone", f"UTC+{rng.randint(1, 9)}"), ("Last backup", self.date()), ("Serial number", self.number("SN")), ("Network", f"{self.pick(_COMPANY)}-5G"), ("Brightness", f"{rng.randint(10, 100)}%")]  # fmt: skip
        return rng.choice(["Settings", "About this device", "Preferences", "System"]), rng.sample(rows, count)

    def series(self, count: int, ordered: bool = False) -> tuple[str, list[str], list[float], str]:
        """Title, names, values and unit of a chart."""
        rng = self.rng
        groups = [
            ["January", "February", "March", "April", "May", "June"],
            ["2019", "2020", "2021", "2022", "2023", "2024"],
            ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat"],
        ]
        unordered = [
            rng.sample(self.mine(_CITY), 6),
            rng.sample(self.mine(_FIRST), 6),
            rng.sample(["Apples", "Pears", "Plums", "Grapes", "Lemons", "Cherries"], 6),
        ]
        names = rng.choice(groups if ordered or rng.random() < 0.4 else unordered)
        names = [n[:3] if n in groups[0] else n for n in names][:count]
        top = rng.choice([20, 60, 100, 400, 900])
        values = rng.sample(range(max(2, top // 10), top), count)
        title = self.pick(
            [
                "Monthly Sales",
                "Website Visitors",
                "Units Sold",
                "Average Rainfall",
                "New Members",
                "Revenue by Region",
                "Tickets Closed",
                "Survey Results",
            ]
        )
        return title, names, [float(v) for v in values], "%" if top <= 100 and rng.random() < 0.3 else ""

    def shown(self, value: float) -> str:
        return f"{value:.0f}"
